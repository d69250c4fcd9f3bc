"""What the servers of this project share: connections, sockets and logs."""
