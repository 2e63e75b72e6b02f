// Package netlab makes test hosts: network namespaces with processes, mounts and a packet filter of their own, joined by
// switches, cables, NATs and routers that can be slow, lossy, cut and pulled. Any test may use it; nothing but tests and
// the program of the lab may. It needs root, nft, and what every Debian has.
//
// # Hosts and cables
//
// A lab belongs to a test and ends with it, whatever runs inside. Three hosts on one switch, and one at home:
//
//	lab := netlab.New(t) // without root: skips, or fails in CI
//	wan := lab.Switch("wan")
//	a, b, c := lab.Host("a"), lab.Host("b"), lab.Host("c")
//	for _, h := range []*netlab.Host{a, b, c} {
//		lab.Link(h, wan, netlab.LinkConfig{Rate: 100 * netlab.Mbit})
//	}
//	home := lab.NAT("home", wan, netlab.NATConfig{Kind: netlab.PortRestrictedCone})
//	d := lab.Host("d")
//	lab.Link(d, home.Inside, netlab.LinkConfig{})
//
// Devices are eth0, eth1, … in the order of the links. Every host has an address of each family that its switch speaks
// (IPv4 and IPv6 unless Switch is given its prefixes) and the routes that it needs: Host.Addr is the first one. Two hosts
// with a cable between them need no switch: lab.Link(a, b, netlab.LinkConfig{}).
//
// # Running things
//
// Programs of the machine run on a host with Start, StartCmd or Run; they see the files of the machine, but have /proc
// and /run to themselves, so two hosts may use the same paths there. Path tells where the test finds them.
//
//	p := a.Start("plenum", "run", "overlay", "--ready-file", "/run/ready")
//	m, err := p.Await(ctx, `listening on (\S+)`) // a regular expression over what it writes
//	p.Signal(syscall.SIGHUP)
//	p.Kill()
//	out, err := a.Run("ip", "route")
//
// Go code of the test opens sockets on a host with Dial, Listen and ListenPacket, or anything at all with Do. A socket
// stays the host's, whichever goroutine uses it:
//
//	conn, err := d.Dial(ctx, "tcp", net.JoinHostPort(a.Addr().String(), "8443"))
//	client := http.Client{Transport: &http.Transport{DialContext: d.Dial}}
//	err := d.Do(func() error { agent, err = ice.NewAgent(…); return err })
//	rtt, err := d.Ping(ctx, a.Addr())
//
// # Breaking things
//
//	link.Down()                           // the cable is pulled: no carrier
//	link.Up()
//	lab.Partition(a, b)                   // both reach c, but not each other
//	lab.Cut(a, b)                         // only from a to b
//	lab.Heal(a, b)
//	link.Impair(netlab.Impairment{Loss: 0.01, Delay: 50 * time.Millisecond, Seed: 1})
//	link.ImpairFrom(a, netlab.Impairment{Rate: 20 * netlab.Mbit, Queue: time.Second})
//	link.Impair(netlab.Impairment{})      // as good as new
//	link.Renumber(a)                      // another address, as from a provider
//	home.Forget()                         // the NAT restarts
//	a.KillAll()                           // power off
//
// Rates of a link are the kernel's token bucket. A kernel may lack netem, and netem does not lose the same packets
// twice; so everything in Impairment is done by an Engine in this process, between two packet sockets. It is exact to
// some 0.1 ms and good for several hundred Mbit/s of a link.
//
// # Looking
//
//	c := lab.Capture(netlab.CaptureConfig{Match: func(frame []byte) bool { return bytes.Contains(frame, secret) }})
//	… traffic …
//	if err := c.Stop(); err != nil { t.Error(err) } // frames were missed
//	if _, n := c.Seen(); n > 0 { t.Errorf("in clear: %x", c.Frames()[0]) }
//
// With CaptureConfig.File it writes a file for Wireshark. While a test stands still, nsenter -t PID -a with Host.PID
// gives a shell on a host.
//
// # Bad networks without namespaces
//
// A Relay puts the same Engine between UDP sockets of one process, for tests of media that need no hosts; the Engine
// itself is a pure machine for tests that need no sockets.
//
//	r, err := netlab.NewRelay(netlab.RelayConfig{Target: bridge, Down: netlab.Impairment{Loss: 0.05, Seed: 1}})
//	// the client sends to r.Addr()
//
// # What is left behind
//
// Nothing. A host lives as long as a pipe of this process is open, cables and switches are in a namespace without a
// name, and both go with the process, however it ends. Should something yet remain, the next lab's Sweep removes it.
package netlab
