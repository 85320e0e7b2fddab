"""Jobs: many targets, from a data set, on one machine or several; the same command goes on where it stopped."""
