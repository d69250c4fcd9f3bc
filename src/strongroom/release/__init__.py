"""The key-release protocol: messages, what evidence is bound to, answers, policy, audit chain. No I/O."""
