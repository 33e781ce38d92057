"""The shape of a draft: topology, masks, index tables, drawing, search. Knows no model."""
