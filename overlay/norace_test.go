//go:build linux && !race

package overlay_test

const slow = false
