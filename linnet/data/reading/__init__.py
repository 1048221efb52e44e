"""Reading sources: files are found, unpacked, decoded, and given out row by row, with the bad rows named."""
