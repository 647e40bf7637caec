"""What everything stands on: processes, files, precision, memory, random streams, other people's servers, errors."""
