"""The base of all wings: processes, files, precision, memory, random streams, external servers, errors."""
