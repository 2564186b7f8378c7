"""A software Data Streaming Accelerator (Intel DSA, specification 341204), composed from ADIs."""
