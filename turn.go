package main

import (
	"net"
	"strconv"

	"github.com/pion/logging"
	"github.com/pion/turn/v4"

	"plenum/signaling"
)

// turnUser is whom all clients are to TURN; the password is made anew at each start.
const turnUser = "plenum"

// A turnServer relays media for clients whose network lets nothing but it through (RFC 8656). It is for
// trying relayed calls with plenum dev; a cluster runs coturn.
type turnServer struct {
	server     *turn.Server
	host, port string // by UDP and by TCP
	password   string
}

func newTURNServer(addr, realm string) (*turnServer, error) {
	udp, err := net.ListenPacket("udp", addr)
	if err != nil {
		return nil, err
	}
	bound := udp.LocalAddr().(*net.UDPAddr)
	tcp, err := net.Listen("tcp", bound.String())
	if err != nil {
		udp.Close()
		return nil, err
	}
	host := bound.IP
	if host.IsUnspecified() {
		host = net.ParseIP(outwardAddress())
	}
	t := &turnServer{host: host.String(), port: strconv.Itoa(bound.Port), password: newPassword()}
	relay := &turn.RelayAddressGeneratorStatic{RelayAddress: host, Address: host.String()}
	// Nobody reaches this machine's own services through the relay.
	allowed := func(_ net.Addr, peer net.IP) bool { return !peer.IsLoopback() || host.IsLoopback() }
	key := turn.GenerateAuthKey(turnUser, realm, t.password)
	t.server, err = turn.NewServer(turn.ServerConfig{
		Realm: realm,
		AuthHandler: func(user, _ string, _ net.Addr) ([]byte, bool) {
			return key, user == turnUser
		},
		PacketConnConfigs: []turn.PacketConnConfig{{PacketConn: udp, RelayAddressGenerator: relay, PermissionHandler: allowed}},
		ListenerConfigs:   []turn.ListenerConfig{{Listener: tcp, RelayAddressGenerator: relay, PermissionHandler: allowed}},
		LoggerFactory:     &logging.DefaultLoggerFactory{DefaultLogLevel: logging.LogLevelDisabled},
	})
	if err != nil {
		udp.Close()
		tcp.Close()
		return nil, err
	}
	return t, nil
}

// services are what clients are told of the server.
func (t *turnServer) services() []signaling.Service {
	var all []signaling.Service
	for _, transport := range []string{"udp", "tcp"} {
		all = append(all, signaling.Service{Type: "turn", Host: t.host, Port: t.port, Transport: transport, Username: turnUser, Password: t.password})
	}
	return all
}

func (t *turnServer) Close() error { return t.server.Close() }
