//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"sync"
)

// Run gives a program what a test has: it calls f with a TB that writes to w, and takes down what f made, also when f
// panics. It returns the error that ended f, nil if none did. The lab's methods are for the goroutine that f runs on.
func Run(w io.Writer, name string, f func(TB)) error {
	p := &program{w: w, name: name}
	done := make(chan struct{})
	go func() { // a goroutine that Fatalf can end
		defer close(done)
		defer p.cleanup()
		f(p)
	}()
	<-done
	return p.err
}

// A program is the TB of Run.
type program struct {
	name string

	mu       sync.Mutex
	w        io.Writer
	err      error
	cleanups []func()
}

func (p *program) Helper()      {}
func (p *program) Name() string { return p.name }

func (p *program) Logf(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintf(p.w, format+"\n", args...)
}

func (p *program) Fatalf(format string, args ...any) {
	p.mu.Lock()
	p.err = errors.Join(p.err, fmt.Errorf(format, args...))
	p.mu.Unlock()
	runtime.Goexit()
}

func (p *program) Skipf(format string, args ...any) { p.Fatalf(format, args...) }

func (p *program) Failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err != nil
}

func (p *program) Cleanup(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cleanups = append(p.cleanups, f)
}

func (p *program) cleanup() {
	p.mu.Lock()
	all := p.cleanups
	p.mu.Unlock()
	for _, f := range slices.Backward(all) {
		f()
	}
}
