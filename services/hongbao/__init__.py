"""hongbao: red-packet rain and enterprise messages on one fenced-log runtime."""
