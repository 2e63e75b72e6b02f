package host

import (
	"context"
	"syscall"
)

// A Unit is a service: a program that runs for as long as the host is part of the cluster.
type Unit struct {
	Name        string // plenum-consul
	Description string
	Exec        []string // the program, with its path on the host, and its arguments
	Env         []string // KEY=value
	After       []string // units that start before this one
	Requires    []string // files of the host without which it does not start
	Options     []string // further lines of [Service], for systemd alone
	NoFile      uint64   // limit of open files; 0 is 65,536
}

// A State is what a service does now.
type State struct {
	Running bool
	Unit    string // Digest of the unit that was started last; empty when nobody knows
}

// Services starts and stops what runs for a long time. What it started is not tied to the life of this process.
type Services interface {
	// State says how the service is.
	State(ctx context.Context, name string) (State, error)
	// Start starts the service, or starts it anew when it runs, and has it start again at boot.
	Start(ctx context.Context, u Unit) error
	// Adopt makes this process the service u, if it is not already and nobody else is: somebody started it by hand, or
	// whatever starts programs where there is no systemd.
	Adopt(u Unit) error
	// Signal sends a signal to the service's main process.
	Signal(ctx context.Context, name string, sig syscall.Signal) error
	// Stop stops the service with all its processes but those that it has left to themselves, and forgets it.
	Stop(ctx context.Context, name string) error
}
