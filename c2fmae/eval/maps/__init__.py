"""Quality of semantic and instance maps, compared with true ones.

Each file turns the maps of an image into counts. Counts are summed over images, and scores are computed from the sums,
so any number of processes returns the same scores, and a bootstrap over images needs no maps.
"""
