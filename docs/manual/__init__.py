"""What makes the site of docs/: pages generated from the code, snippets that run, notebooks, links."""
