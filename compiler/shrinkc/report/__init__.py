"""The pages of ``shrinkc report``: what is known of a compiled directory or of a compression run."""
