"""Studies: a folder of recipes, each trained with several seeds under one budget, into one table with intervals."""
