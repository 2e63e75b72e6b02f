//go:build linux

package netlab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// The holder of a host carries its owner in the environment: process id and start time, which together name one
// process for as long as the machine runs.
const mark = "PLENUM_NETLAB_HOLDER="

func holderMark(host string) string {
	pid := os.Getpid()
	return fmt.Sprintf("%s%d:%s:%s", mark, pid, startTime(pid), host)
}

var sweepOnce = sync.OnceFunc(func() { Sweep() })

// Sweep kills what is left of labs whose process has ended, and returns how many hosts that were. There should be none:
// a host ends with the pipe that its owner holds. New calls Sweep once; calling it at any time is safe, also beside
// other tests with labs.
func Sweep() int {
	n := 0
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		dir := filepath.Dir(file)
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		env, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		owner, start, ok := marked(env)
		// The holder of a lab that was made inside a test host numbers its owner otherwise than we do; its own
		// host takes care of it. It is told by its depth: one PID namespace below ours, not two.
		if !ok || depth(dir) != 2 || startTime(owner) == start {
			continue
		}
		if unix.Kill(pid, unix.SIGKILL) == nil {
			n++
		}
	}
	return n
}

func marked(env []byte) (owner int, start string, ok bool) {
	for line := range bytes.SplitSeq(env, []byte{0}) {
		value, ok := strings.CutPrefix(string(line), mark)
		if !ok {
			continue
		}
		fields := strings.SplitN(value, ":", 3)
		owner, err := strconv.Atoi(fields[0])
		if len(fields) != 3 || err != nil {
			return 0, "", false
		}
		return owner, fields[1], true
	}
	return 0, "", false
}

// depth returns in how many PID namespaces the process has a number, counted from ours: proc(5), NSpid.
func depth(dir string) int {
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if ids, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return len(strings.Fields(ids))
		}
	}
	return 0
}

// startTime returns when the process started, in ticks since boot, and "" when there is no such process. proc(5),
// field 22 of stat.
func startTime(pid int) string {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	after := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:])) // the name may hold anything
	if len(after) < 20 {
		return ""
	}
	return after[19]
}
