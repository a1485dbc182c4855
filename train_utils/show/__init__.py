"""Images, curves, videos and pages for people."""
