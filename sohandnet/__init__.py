"""SO-HandNet (ICCV 2019): hand joints from a cloud of oriented points, trained with and without labels."""
