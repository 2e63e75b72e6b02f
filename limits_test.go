package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"plenum/signaling/client/count"
)

// A program is the real binary at work.
type program struct {
	*testing.T
	cmd   *exec.Cmd
	ready readyFile
	log   strings.Builder
}

// startProgram runs the binary with a limit of file descriptors, 0 for none, until the end of the test.
func startProgram(t *testing.T, files int, args ...string) *program {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready.json")
	limit := ""
	if files > 0 {
		limit = fmt.Sprintf("ulimit -n %d; ", files)
	}
	p := &program{T: t, cmd: exec.Command("sh", append([]string{"-c", limit + `exec plenum "$@"`, "sh"}, append(args, "--ready-file", ready)...)...)}
	p.cmd.Stderr = &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { p.cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		p.cmd.Process.Signal(syscall.SIGTERM)
		<-ended
		if t.Failed() {
			t.Logf("plenum %s: %v\n%s", strings.Join(args, " "), p.cmd.ProcessState, p.log.String())
		}
	})
	for end := time.Now().Add(mediaLimit); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if text, err := os.ReadFile(ready); err == nil && json.Unmarshal(text, &p.ready) == nil {
			return p
		}
		select {
		case <-ended:
			t.Fatalf("plenum has ended: %v\n%s", p.cmd.ProcessState, p.log.String())
		default:
		}
	}
	t.Fatal("plenum is not ready")
	return nil
}

// metric reads one number that operators see.
func (p *program) metric(name string) float64 {
	p.Helper()
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(p.ready.Metrics + "/metrics")
	if err != nil {
		p.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		p.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				p.Fatal(err)
			}
			return v
		}
	}
	p.Fatalf("there is no %s", name)
	return 0
}

// cpu is what the process has used.
func (p *program) cpu() time.Duration {
	fields, err := statFields("/proc/" + strconv.Itoa(p.cmd.Process.Pid))
	if err != nil {
		p.Fatal(err)
	}
	return ticks(fields[11]) + ticks(fields[12])
}

// TestOutOfFiles (E1) has two hundred want to come in where there are 64 file descriptors: those who are in go on, the
// others are told to come later, nothing spins, and when thirty leave thirty come in.
func TestOutOfFiles(t *testing.T) {
	const free = "127.0.0.1:0"
	p := startProgram(t, 64, "dev", "--http", free, "--xmpp", free, "--metrics", free, "--media", free, "--bridge-http", free)
	ctx, cancel := context.WithTimeout(context.Background(), 2*mediaLimit)
	defer cancel()
	cfg := func(i int) count.Config {
		return count.Config{URL: strings.Replace(p.ready.HTTP, "http", "ws", 1) + "/xmpp-websocket", Room: "files", Nick: uint32(i + 1)}
	}
	var in []*count.Client
	defer func() {
		for _, c := range in {
			c.Close()
		}
	}()
	for i := 0; len(in) < 60; i++ {
		c, err := count.Dial(ctx, cfg(i))
		if err != nil {
			break
		}
		if err := c.Join(); err != nil {
			t.Fatal(err)
		}
		in = append(in, c)
	}
	if len(in) < 10 || len(in) > 60 {
		t.Fatalf("%d came in", len(in))
	}
	if full := p.metric("plenum_shard_open_files_ratio"); full < 0.8 || full > 1 {
		t.Errorf("%v of the file descriptors are open", full)
	}
	if !strings.Contains(p.log.String(), "file descriptors run out") {
		t.Error("no warning")
	}
	// Many more, all at once: each is told, or waits; those who are told are told when to come again.
	var told, waits atomic.Int64
	var crowd sync.WaitGroup
	client := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	used := p.cpu()
	began := time.Now()
	for range 200 - len(in) {
		crowd.Go(func() {
			r, err := client.Get(p.ready.HTTP + "/config.js")
			if err != nil {
				waits.Add(1)
				return
			}
			defer r.Body.Close()
			if r.StatusCode != http.StatusServiceUnavailable || r.Header.Get("Retry-After") == "" {
				t.Errorf("told %s, to come after %q", r.Status, r.Header.Get("Retry-After"))
			}
			told.Add(1)
		})
	}
	crowd.Wait()
	// Those who are in notice nothing.
	for i, c := range in {
		c.SetDeadline(time.Now().Add(soon))
		id := fmt.Sprint("still", i)
		if _, err := c.Ask(`<iq id="`+id+`" to="localhost" type="get" xmlns="jabber:client"><ping xmlns="urn:xmpp:ping"/></iq>`, id); err != nil {
			t.Fatalf("one who was in: %v", err)
		}
	}
	time.Sleep(time.Until(began.Add(2 * time.Second)))
	spent, elapsed := p.cpu()-used, time.Since(began)
	t.Logf("%d are in; of the others %d were told to come again and %d waited; %v of CPU in %v", len(in), told.Load(), waits.Load(), spent, elapsed.Round(time.Millisecond))
	if told.Load() == 0 {
		t.Error("nobody was told to come again")
	}
	if spent > elapsed/5 {
		t.Errorf("%v of CPU in %v", spent, elapsed)
	}
	leaving := min(30, len(in)/2)
	for _, c := range in[:leaving] {
		c.Leave()
	}
	in = in[leaving:]
	for i := 0; i < leaving-2; { // the process itself may have opened a few
		c, err := count.Dial(ctx, cfg(100+i))
		if err != nil {
			if ctx.Err() != nil {
				t.Fatalf("%d of %d came in after as many had left: %v", i, leaving, err)
			}
			time.Sleep(20 * time.Millisecond) // those who left are still on their way out
			continue
		}
		in = append(in, c)
		i++
	}
}
