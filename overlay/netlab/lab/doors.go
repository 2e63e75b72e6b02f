//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
)

// A door lets programs of this machine, such as browsers, reach a port of a host. It is on 127.0.0.1 and open until the
// lab ends, whether somebody answers behind it or not.

// door takes connections to where the host reaches.
func (m *member) door(to netip.AddrPort) (netip.AddrPort, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, err
	}
	m.c.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := m.Dial(m.c.ctx, "tcp", to.String())
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

// pageDoor takes a browser's plain HTTP, which it trusts on this machine as it does HTTPS elsewhere, to the edge of the
// host, which has TLS. What a page is told of sockets leads back to the door.
func (m *member) pageDoor() (netip.AddrPort, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, err
	}
	client, err := m.client()
	if err != nil {
		return netip.AddrPort{}, err
	}
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host = "https", m.names()[1] // the Host of the request stays
		},
		Transport: client.Transport,
		ModifyResponse: func(r *http.Response) error {
			if !strings.HasSuffix(r.Request.URL.Path, "config.js") {
				return nil
			}
			body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
			if err != nil {
				return err
			}
			body = bytes.ReplaceAll(body, []byte("wss://"+r.Request.Host), []byte("ws://"+r.Request.Host))
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
			r.Header.Set("Content-Length", strconv.Itoa(len(body)))
			return nil
		},
		ErrorLog: log.New(io.Discard, "", 0), // sockets end as they please
	}
	server := &http.Server{Handler: proxy, ReadHeaderTimeout: 10 * time.Second}
	m.c.t.Cleanup(func() { server.Close() })
	go func() { _ = server.Serve(l) }()
	return l.Addr().(*net.TCPAddr).AddrPort(), nil
}

// client reaches the host's edge by TLS, and believes the lab's authority alone. It keeps its connections.
func (m *member) client() (*http.Client, error) {
	pem, err := os.ReadFile(m.c.ca.roots())
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	edge := netip.AddrPortFrom(m.Addr(), 443).String()
	t := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return m.Dial(ctx, "tcp", edge) },
		TLSClientConfig:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2: true,
	}
	m.c.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t}, nil
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
