"""What is sent, and how it becomes bytes: values, messages, frames, codecs and the bound they are held against."""
