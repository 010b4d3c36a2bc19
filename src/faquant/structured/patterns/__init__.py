"""Regular expressions of JSON schemas (ECMA-262): their syntax, matching, and the JSON text of what they match."""
