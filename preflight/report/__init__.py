"""How results are shown: text as they come; JSON, JUnit and one-liners from one document."""
