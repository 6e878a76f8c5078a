"""Pages of ``shrinkc report`` about compiled directories and compression runs."""
