// Package stack brings the real Consul, Nomad, Vault and Prometheus to tests: built once from their modules under
// tools/, and started in their development modes on loopback, each with ports of its own. It does not imitate any of
// them. What a cluster's servers look like is the agent's to say; tests of that take the binaries from Path.
package stack

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"plenum/overlay/netlab"
)

// Path is where the binary of a server is: consul, nomad, vault, prometheus, promtool or pebble. It is built if it is
// not there yet, which takes minutes and is told.
func Path(t netlab.TB, name string) string {
	t.Helper()
	path, err := Build(name)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return path
}

// Build is Path for programs that are no tests.
func Build(name string) (string, error) {
	built.Lock()
	defer built.Unlock()
	if path, ok := built.paths[name]; ok {
		return path, nil
	}
	_, file, _, _ := runtime.Caller(0)
	script := filepath.Join(filepath.Dir(file), "..", "..", "..", "tools", "build")
	cmd := exec.Command(script, name)
	var out, why bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &why
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", script, name, err, why.Bytes())
	}
	path := strings.TrimSpace(out.String())
	built.paths[name] = path
	return path, nil
}

var built = struct {
	sync.Mutex
	paths map[string]string
}{paths: map[string]string{}}

// Environment is what servers are started with: nothing of the tester's but a path and a home, for Nomad ends when it
// finds signs of a cloud.
func Environment(home string) []string {
	return []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=" + home,
		"CHECKPOINT_DISABLE=1", "DO_NOT_TRACK=1"}
}

// A Server is one process on loopback that ends with its test.
type Server struct {
	Address string // host:port of its HTTP API
	Token   string // may do everything; empty where nothing is asked
	Dir     string // its own, removed with it

	t    netlab.TB
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan struct{}
}

// URL is the root of its HTTP API.
func (s *Server) URL() string { return "http://" + s.Address }

// Kill ends the process as kill -9 does and waits for its end.
func (s *Server) Kill() {
	_ = s.cmd.Process.Kill()
	<-s.done
}

// Signal sends sig to the process: SIGSTOP freezes it.
func (s *Server) Signal(sig syscall.Signal) error { return s.cmd.Process.Signal(sig) }

// Consul starts a server of its own cluster: no ACLs, sessions from five seconds on.
func Consul(t netlab.TB) *Server {
	t.Helper()
	s, ports := prepare(t, 5)
	config := fmt.Sprintf(`
bind_addr = "127.0.0.1"
session_ttl_min = "5s"
ports { http = %d, dns = -1, grpc = -1, grpc_tls = -1, server = %d, serf_lan = %d, serf_wan = -1 }
performance { raft_multiplier = 1 }
telemetry { prometheus_retention_time = "60s" }
`, ports[0], ports[1], ports[2])
	s.start(Path(t, "consul"), "agent", "-dev", "-config-file", s.write("consul.hcl", config))
	s.await("/v1/status/leader", func(body []byte) bool { return bytes.Contains(body, []byte(":")) })
	return s
}

// Vault starts a server with its storage in memory, unsealed; Token is its root token.
func Vault(t netlab.TB) *Server {
	t.Helper()
	s, ports := prepare(t, 1)
	s.Token = "root"
	s.start(Path(t, "vault"), "server", "-dev", "-dev-root-token-id", s.Token, "-dev-no-store-token",
		"-dev-listen-address", fmt.Sprintf("127.0.0.1:%d", ports[0]))
	s.await("/v1/sys/health", func(body []byte) bool { return bytes.Contains(body, []byte(`"sealed":false`)) })
	return s
}

// Nomad starts a server that is its own client, in the pool default, with raw_exec and without ACLs. Its services are
// in the given Consul, or in Nomad itself if that is nil.
func Nomad(t netlab.TB, consul *Server) *Server {
	t.Helper()
	s, ports := prepare(t, 3)
	register := ""
	if consul != nil {
		register = fmt.Sprintf("consul { address = %q }", consul.Address)
	}
	config := fmt.Sprintf(`
bind_addr = "127.0.0.1"
ports { http = %d, rpc = %d, serf = %d }
server { raft_multiplier = 1 }
client {
  options = { "fingerprint.denylist" = "env_aws,env_gce,env_azure,env_digitalocean" }
  template { wait { min = "200ms", max = "1s" } }
}
plugin "raw_exec" { config { enabled = true } }
telemetry { prometheus_metrics = true }
%s
`, ports[0], ports[1], ports[2], register)
	s.start(Path(t, "nomad"), "agent", "-dev", "-data-dir", filepath.Join(s.Dir, "data"),
		"-config", s.write("nomad.hcl", config))
	s.await("/v1/nodes", func(body []byte) bool { return bytes.Contains(body, []byte(`"Status":"ready"`)) })
	return s
}

// prepare makes a server's folder and finds it n free ports.
func prepare(t netlab.TB, n int) (*Server, []int) {
	t.Helper()
	dir, err := os.MkdirTemp("", "plenum-stack-")
	if err != nil {
		t.Fatalf("%v", err)
	}
	t.Cleanup(func() {
		Sweep(dir)
		_ = os.RemoveAll(dir)
	})
	ports := Ports(t, n)
	return &Server{Address: fmt.Sprintf("127.0.0.1:%d", ports[0]), Dir: dir, t: t, done: make(chan struct{})}, ports
}

// Sweep ends what a Nomad that was killed leaves behind: executors and tasks that have dir in their command lines or work
// in it, and what it has mounted below dir for its tasks.
func Sweep(dir string) {
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range all {
		line, err := os.ReadFile(path)
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		cwd, _ := os.Readlink(filepath.Join(filepath.Dir(path), "cwd"))
		if err == nil && pid != os.Getpid() && (bytes.Contains(line, []byte(dir+"/")) || strings.HasPrefix(cwd, dir)) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for _, line := range slices.Backward(slices.Collect(strings.Lines(string(mounts)))) {
		if f := strings.Fields(line); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
}

// Ports finds n ports of 127.0.0.1 that are free for TCP and UDP just now. They stay taken until all are found.
func Ports(t netlab.TB, n int) []int {
	t.Helper()
	var ports []int
	for range 100 * n {
		if len(ports) == n {
			return ports
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatalf("%v", err)
		}
		defer l.Close()
		port := l.Addr().(*net.TCPAddr).Port
		u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
		if err != nil {
			continue
		}
		defer u.Close()
		ports = append(ports, port)
	}
	t.Fatalf("no %d ports are free on 127.0.0.1", n)
	return nil
}

func (s *Server) write(name, text string) string {
	path := filepath.Join(s.Dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatalf("%v", err)
	}
	return path
}

func (s *Server) start(path string, args ...string) {
	s.t.Helper()
	s.cmd = exec.Command(path, args...)
	s.cmd.Env, s.cmd.Dir = Environment(s.Dir), s.Dir
	s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.out
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() { // the kernel sends Pdeathsig when the thread that started it ends: keep one for it
		runtime.LockOSThread()
		err := s.cmd.Start()
		started <- err
		if err == nil {
			_ = s.cmd.Wait()
			close(s.done)
		}
	}()
	if err := <-started; err != nil {
		s.t.Fatalf("%s: %v", path, err)
	}
	s.t.Cleanup(s.Kill)
}

// await asks path until the answer is what is wanted.
func (s *Server) await(path string, wanted func(body []byte) bool) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		if body, err := fetch(ctx, s.URL()+path); err == nil && wanted(body) {
			return
		}
		select {
		case <-s.done:
			s.t.Fatalf("%s ended: %s", s.cmd.Path, s.out.Bytes())
		case <-ctx.Done():
			s.Kill()
			s.t.Fatalf("%s is not ready after a minute: %s", s.cmd.Path, s.out.Bytes())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func fetch(ctx context.Context, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	var body bytes.Buffer
	_, err = body.ReadFrom(res.Body)
	return body.Bytes(), err
}

// client keeps no connections, so that a test leaves no goroutine behind.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
