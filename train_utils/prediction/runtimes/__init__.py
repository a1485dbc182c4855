"""An exported file -> what is called like the model that it was made of; each runtime is an optional package."""
