//go:build linux

package netlab

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A Host is a set of namespaces (network, mount, PID, IPC, host name) held by one small process. That process reads a
// pipe of which this process has the other end, and is the first of its PID namespace: when the test ends, is killed or
// crashes, the pipe closes, the process ends, and with it everything that ran on the host, its devices and its mounts.
//
// A host sees the files of the machine, but /proc and /run are its own: /run is empty, so that sockets such as
// /run/wireguard/NAME.sock do not meet.
type Host struct {
	lab  *Lab
	name string

	holder *exec.Cmd
	life   *os.File // the writing end of the holder's input
	ns     netns.NsHandle
	nl     *netlink.Handle // in ns

	links []*end

	mu        sync.Mutex
	processes []*Process
}

// The holder's script. In the end SIGCHLD is ignored, so that the kernel reaps what is orphaned on the host.
const holderScript = `set -e
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 netlab /run
printf %s "$1" >/proc/sys/kernel/hostname
echo ready
exec env --ignore-signal=CHLD cat >/dev/null`

// Host adds a host. Its name is its host name, and what logs call it.
func (l *Lab) Host(name string) *Host {
	l.t.Helper()
	h := &Host{lab: l, name: name}
	l.must(h.start(), "host %s", name)
	l.hosts = append(l.hosts, h)
	l.must(h.Do(func() error {
		for key, value := range map[string]string{
			"net.ipv6.conf.all.accept_dad":        "0", // addresses are usable at once
			"net.ipv6.conf.default.accept_dad":    "0",
			"net.ipv6.conf.all.accept_ra":         "0",
			"net.ipv6.conf.default.accept_ra":     "0",
			"net.ipv4.ping_group_range":           "0 2147483647",
			"net.ipv4.conf.all.rp_filter":         "0",
			"net.ipv4.conf.default.rp_filter":     "0",
			"net.ipv4.ip_unprivileged_port_start": "0",
		} {
			if err := sysctl(key, value); err != nil {
				return err
			}
		}
		return nil
	}), "host %s", name)
	lo, err := h.nl.LinkByName("lo")
	l.must(err, "host %s", name)
	l.must(h.nl.LinkSetUp(lo), "host %s", name)
	return h
}

func (h *Host) start() (err error) {
	in, life, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	h.life = life
	h.holder = exec.Command("sh", "-c", holderScript, "netlab", h.name)
	h.holder.Dir = "/"
	h.holder.Env = []string{"PATH=" + os.Getenv("PATH"), holderMark(h.name)}
	h.holder.Stdin = in
	var complaint strings.Builder
	h.holder.Stderr = &complaint
	out, err := h.holder.StdoutPipe()
	if err != nil {
		return err
	}
	h.holder.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true, // an interrupt on the terminal is for the test, which then cleans up
	}
	if err := h.holder.Start(); err != nil {
		life.Close()
		return err
	}
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		life.Close()
		err := h.holder.Wait()
		return fmt.Errorf("set-up: %w: %s", err, strings.TrimSpace(complaint.String()))
	}
	if h.ns, err = netns.GetFromPid(h.PID()); err != nil {
		return err
	}
	h.nl, err = netlink.NewHandleAt(h.ns)
	return err
}

func (h *Host) close() {
	h.life.Close()
	h.holder.Process.Kill()
	h.mu.Lock()
	processes := h.processes
	h.mu.Unlock()
	for _, p := range processes {
		<-p.done
	}
	h.holder.Wait()
	if h.nl != nil {
		h.nl.Close()
	}
	h.ns.Close()
}

// Name returns the host's name.
func (h *Host) Name() string { return h.name }

// PID returns the process that holds the host. `nsenter -t PID -a` gives a shell on the host while a test stands still.
func (h *Host) PID() int { return h.holder.Process.Pid }

// Path returns where this process finds a file of the host, for /run and what else is mounted there.
func (h *Host) Path(elem ...string) string {
	return filepath.Join("/proc", strconv.Itoa(h.PID()), "root", filepath.Join(elem...))
}

// Mount gives the host an empty directory of its own at dir, which must exist on the machine.
func (h *Host) Mount(dir string) {
	h.lab.t.Helper()
	err := discard(func() error {
		if err := h.enter(unix.CLONE_NEWNS); err != nil {
			return err
		}
		return unix.Mount("netlab", dir, "tmpfs", 0, "mode=755")
	})
	h.lab.must(err, "%s: mount %s", h.name, dir)
}

// enter moves this thread into the named namespaces of the host, for good: callers are under discard.
func (h *Host) enter(kinds ...int) error {
	for _, kind := range kinds {
		if kind == unix.CLONE_NEWNS {
			if err := unix.Unshare(unix.CLONE_FS); err != nil { // a thread that shares its root may not move
				return err
			}
		}
		file := map[int]string{unix.CLONE_NEWNET: "net", unix.CLONE_NEWNS: "mnt", unix.CLONE_NEWPID: "pid",
			unix.CLONE_NEWUTS: "uts", unix.CLONE_NEWIPC: "ipc"}[kind]
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", h.PID(), file), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		err = unix.Setns(fd, kind)
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("enter %s: %w", file, err)
		}
	}
	return nil
}

// Do runs f with the calling goroutine in the host's network namespace: sockets that f opens are the host's for ever,
// whoever uses them afterwards. Goroutines that f starts are not on the host. Files are those of the machine.
func (h *Host) Do(f func() error) error { return within(h.ns, f) }

// Dial connects from the host, as net.Dialer does. The address must be literal, for a resolver has goroutines of its
// own. The networks "unix" and "unixpacket" reach sockets in the host's file system.
func (h *Host) Dial(ctx context.Context, network, address string) (c net.Conn, err error) {
	if strings.HasPrefix(network, "unix") {
		return new(net.Dialer).DialContext(ctx, network, h.Path(address))
	}
	err = h.Do(func() error {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}

// Listen listens on the host, as net.Listen does.
func (h *Host) Listen(network, address string) (ln net.Listener, err error) {
	err = h.Do(func() error { ln, err = net.Listen(network, address); return err })
	return ln, err
}

// ListenPacket listens on the host, as net.ListenPacket does.
func (h *Host) ListenPacket(network, address string) (c net.PacketConn, err error) {
	err = h.Do(func() error { c, err = net.ListenPacket(network, address); return err })
	return c, err
}

// Netlink returns a handle of the host's network namespace, owned by the host, for what has no method here.
func (h *Host) Netlink() *netlink.Handle { return h.nl }

// NS returns the host's network namespace, owned by the host.
func (h *Host) NS() netns.NsHandle { return h.ns }

// Sysctl sets a network setting of the host, such as net.ipv4.ip_forward.
func (h *Host) Sysctl(key, value string) {
	h.lab.t.Helper()
	h.lab.must(h.Do(func() error { return sysctl(key, value) }), "%s: %s", h.name, key)
}

func sysctl(key, value string) error {
	return os.WriteFile("/proc/sys/"+strings.ReplaceAll(key, ".", "/"), []byte(value), 0)
}

// Addrs returns the host's addresses in the order of its links, IPv4 before IPv6.
func (h *Host) Addrs() []netip.Addr {
	var all []netip.Addr
	for _, e := range h.links {
		for _, p := range e.addrs {
			all = append(all, p.Addr())
		}
	}
	return all
}

// Addr returns the first of Addrs: the IPv4 address of the first link where there is one.
func (h *Host) Addr() netip.Addr {
	h.lab.t.Helper()
	all := h.Addrs()
	if len(all) == 0 {
		h.lab.t.Fatalf("netlab: host %s has no link", h.name)
	}
	return all[0]
}

// Links returns the host's links in the order they were made; the first is eth0.
func (h *Host) Links() []*Link {
	var all []*Link
	for _, e := range h.links {
		all = append(all, e.link)
	}
	return all
}

// Nft loads a script into the host's packet filter.
func (h *Host) Nft(script string) {
	h.lab.t.Helper()
	cmd := exec.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	h.lab.must(h.output(cmd), "%s: nft", h.name)
}

func (h *Host) output(cmd *exec.Cmd) error {
	p, err := h.launch(cmd)
	if err != nil {
		return err
	}
	if err := p.Wait(); err != nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(p.Output()))
	}
	return nil
}
