"""What the tests stand on: servers, workers, faults, waiting. Its own tests are in `tests/infrastructure`."""
