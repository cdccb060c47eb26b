"""What is done with whole token stores: look into them, take recordings out as files, merge them, take parts."""
