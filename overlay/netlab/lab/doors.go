//go:build linux

package main

import (
	"errors"
	"io"
	"net"
	"net/netip"
)

// A door lets programs of this machine, such as browsers, reach a port of a host. It is on 127.0.0.1 and open until the
// lab ends, whether somebody answers behind it or not.

// door takes connections to a TCP port of the host, as another process there would make them.
func (m *member) door(port uint16) (netip.AddrPort, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, err
	}
	m.c.t.Cleanup(func() { l.Close() })
	to := netip.AddrPortFrom(m.Addr(), port).String()
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := m.Dial(m.c.ctx, "tcp", to)
				if err != nil {
					return
				}
				defer out.Close()
				go func() {
					_, _ = io.Copy(out, in)
					_ = out.(*net.TCPConn).CloseWrite()
				}()
				_, _ = io.Copy(in, out)
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort(), nil
}

// mediaDoor takes packets to the host's bridge, and its answers back.
func (m *member) mediaDoor() (netip.AddrPort, error) {
	l, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return netip.AddrPort{}, err
	}
	m.c.t.Cleanup(func() { l.Close() })
	to := netip.AddrPortFrom(m.Addr(), mediaPort).String()
	go func() {
		clients := map[netip.AddrPort]net.Conn{}
		b := make([]byte, 2048)
		for {
			n, from, err := l.ReadFromUDPAddrPort(b)
			if err != nil {
				for _, out := range clients {
					out.Close()
				}
				return
			}
			out := clients[from]
			if out == nil {
				if out, err = m.Dial(m.c.ctx, "udp", to); err != nil {
					continue
				}
				clients[from] = out
				go func() {
					b := make([]byte, 2048)
					for {
						n, err := out.Read(b)
						if errors.Is(err, net.ErrClosed) {
							return
						}
						if err == nil { // nobody listens just now, otherwise
							_, _ = l.WriteToUDPAddrPort(b[:n], from)
						}
					}
				}()
			}
			_, _ = out.Write(b[:n])
		}
	}()
	return l.LocalAddr().(*net.UDPAddr).AddrPort(), nil
}
