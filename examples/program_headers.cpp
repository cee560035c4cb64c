// Owns the precompiled headers of the programs.
