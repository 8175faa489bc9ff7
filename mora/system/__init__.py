"""The machine under the library: files that are whole or not there, readers that run no code, words of messages."""
