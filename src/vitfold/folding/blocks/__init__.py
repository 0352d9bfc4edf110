"""How blocks of every family attend and feed forward over tokens that were reduced."""
