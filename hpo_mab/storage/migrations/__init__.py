"""Changes of our tables in databases that exist; see `hpo_mab.storage._schema`."""
