package load

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"plenum/signaling"
	"plenum/signaling/client/count"
)

// TestMain is also the server that is measured: this program again, in a process of its own.
func TestMain(m *testing.M) {
	if os.Getenv("PLENUM_LOAD_SHARD") == "" {
		os.Exit(m.Run())
	}
	if n, err := strconv.ParseUint(os.Getenv("PLENUM_LOAD_FILES"), 10, 64); err == nil {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: n, Max: n}); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	var config signaling.Config
	config.HTTP, config.XMPP = "127.0.0.1:0", "127.0.0.1:0"
	s, err := signaling.New(config)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if where := os.Getenv("PLENUM_LOAD_PROFILE"); where != "" {
		defer profile(where)()
	}
	json.NewEncoder(os.Stdout).Encode(s.HTTPAddr().String())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := s.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// shard starts a shard of our own and returns its process and what to dial.
func shard(tb testing.TB) (pid int, c count.Config) { return shardWith(tb) }

// shardWith is shard with more environment.
func shardWith(tb testing.TB, env ...string) (pid int, c count.Config) {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(append(os.Environ(), "PLENUM_LOAD_SHARD=1"), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
	})
	var address string
	if err := json.NewDecoder(bufio.NewReader(out)).Decode(&address); err != nil {
		tb.Fatal(err)
	}
	return cmd.Process.Pid, count.Config{URL: "ws://" + address + "/xmpp-websocket"}
}

// prosody starts Debian's Prosody as a plain MUC with anonymous users, WebSocket and stream management, and
// without limits, or skips.
func prosody(tb testing.TB) (pid int, c count.Config) {
	tb.Helper()
	exe, err := exec.LookPath("prosody")
	if err != nil {
		tb.Skip("prosody is not installed: apt-get install prosody")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	address := l.Addr().String()
	_, port, _ := net.SplitHostPort(address)
	l.Close()
	dir := tb.TempDir()
	config := filepath.Join(dir, "prosody.cfg.lua")
	if err := os.WriteFile(config, []byte(strings.NewReplacer("DIR", dir, "PORT", port).Replace(`
daemonize = false
run_as_root = true
pidfile = "DIR/prosody.pid"
data_path = "DIR"
log = { error = "*console" }
c2s_ports = {}
s2s_ports = {}
legacy_ssl_ports = {}
https_ports = {}
http_ports = { PORT }
http_interfaces = { "127.0.0.1" }
modules_enabled = { "saslauth", "disco", "ping", "smacks", "websocket" }
modules_disabled = { "s2s", "offline" }
consider_websocket_secure = true
smacks_hibernation_time = 5
VirtualHost "localhost"
	authentication = "anonymous"
Component "conference.localhost" "muc"
	muc_room_locking = false
`)), 0o600); err != nil {
		tb.Fatal(err)
	}
	cmd := exec.Command(exe, "--config", config)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(end) {
			tb.Fatal("prosody does not listen: ", err)
		}
	}
	return cmd.Process.Pid, count.Config{URL: "ws://" + address + "/xmpp-websocket", NoConference: true, NoManagement: true}
}

// crowd is the size of a room that may be full.
const crowd = 500

// BenchmarkStorm is 500 who join one room at once: ours and Debian's Prosody, one after the other, in one run.
func BenchmarkStorm(b *testing.B) {
	var ours, theirs StormResult
	for _, s := range []struct {
		name   string
		server func(testing.TB) (int, count.Config)
		result *StormResult
	}{{"plenum", shard, &ours}, {"prosody", prosody, &theirs}} {
		b.Run(s.name, func(b *testing.B) {
			pid, client := s.server(b)
			client.Room = "storm"
			ctx, cancel := context.WithTimeout(b.Context(), 8*time.Minute)
			defer cancel()
			for i := 0; b.Loop(); i++ {
				client.Room = fmt.Sprint("storm-", i)
				r, err := Storm{Client: client, Crowd: crowd, PID: pid}.Run(ctx)
				if err != nil {
					b.Fatal(err)
				}
				b.Log(r)
				*s.result = r
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(s.result.PerDelivery())/1e3, "µs/presence")
			b.ReportMetric(s.result.Wall.Seconds(), "s/roster")
			b.ReportMetric(mb(s.result.After.Peak), "MB")
		})
	}
	if ours.Deliveries > 0 && theirs.Deliveries > 0 {
		b.Logf("prosody / plenum: CPU %.1f, time %.1f, memory %.1f", float64(theirs.PerDelivery())/float64(ours.PerDelivery()),
			theirs.Wall.Seconds()/ours.Wall.Seconds(), float64(theirs.After.Peak)/float64(ours.After.Peak))
	}
}

// BenchmarkIdle is sessions that have logged in and do nothing.
func BenchmarkIdle(b *testing.B) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		b.Fatal(err)
	}
	for _, s := range []struct {
		name     string
		sessions int
		perRoom  int
		server   func(testing.TB) (int, count.Config)
	}{{"plenum", min(20000, int(files.Max)-700), 0, shard}, {"plenum-in-rooms-of-10", 5000, 10, shard}, {"prosody", 2000, 0, prosody}} {
		b.Run(s.name, func(b *testing.B) {
			pid, client := s.server(b)
			client.Room = "idle"
			ctx, cancel := context.WithTimeout(b.Context(), 8*time.Minute)
			defer cancel()
			var r IdleResult
			for b.Loop() {
				var err error
				if r, err = (Idle{Client: client, Sessions: s.sessions, PerRoom: s.perRoom, PID: pid, Settle: 20 * time.Second}).Run(ctx); err != nil {
					b.Fatal(err)
				}
				b.Log(r)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(r.PerSession())/1e3, "kB/session")
		})
	}
}
