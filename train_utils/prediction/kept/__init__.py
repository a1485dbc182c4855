"""What a call has found, kept on the disk from image to image, until one json has it all."""
