"""Many images: who does which chunk, what stays finished whatever happens, the tables. Never how one is explained."""
