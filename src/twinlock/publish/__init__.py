"""The build side: pack images into releases, keep keys, sign, keep the repository, publish it to a server."""
