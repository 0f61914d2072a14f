"""How the work is spread: strands over the cores of one machine, processes over several."""
