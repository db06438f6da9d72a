package fastpath

//go:generate go tool -modfile=../../tools.mod bpf2go -cc clang-14 -strip llvm-strip-14 -target bpfel -no-global-types -type own -type peer -type prefix -type local -type traffic program fastpath.c -- -O2 -g -Wall -Werror -mcpu=v3 -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu
