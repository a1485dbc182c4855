"""Commands and models on images of many thousands of pixels -> time, memory, what is found."""
