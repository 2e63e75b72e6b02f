//go:build linux && race

package overlay_test

// slow is set where processes run ten times slower than they would: loss is then that of the machine.
const slow = true
