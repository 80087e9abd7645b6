"""What tests are built from: tiny models (`tiny`), whole problems (`worlds`), records (`records`),
and the means to kill a command at an instant (`plants`, `forked`, `killed`, `faulty`)."""
