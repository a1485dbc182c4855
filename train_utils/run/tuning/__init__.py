"""What a run finds out by trying: the rate (--lr auto), the batch that fits (--batch-size auto), an early burst."""
