"""The door for unmodified applications of Gramine: secret provisioning over RA-TLS, protocol V1."""
