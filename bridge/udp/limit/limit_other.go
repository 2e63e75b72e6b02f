//go:build !linux

// Command limit measures Linux's system calls; elsewhere there is nothing to measure.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "limit: this program is about Linux's recvmmsg, sendmmsg and UDP_SEGMENT")
	os.Exit(1)
}
