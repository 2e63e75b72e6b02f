package transport

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"github.com/pion/datachannel"
	"github.com/pion/sctp"
)

const (
	// maxMessageBytes is the longest message taken or sent, as announced by the clients' own SDP.
	maxMessageBytes = 262144
	// maxBufferedBytes is what may wait to be sent to one peer.
	maxBufferedBytes = 1 << 20
	// sctpReceiveBytes bounds what one peer can make us hold. A little more than a message of 1 MB, so that such
	// a one can be read and dropped, and the channel lives on.
	sctpReceiveBytes = 3 << 19
	sctpMaxRTO       = 3000 // ms
)

var (
	// ErrNoChannel is returned by SendMessage before the peer has opened its data channel.
	ErrNoChannel = errors.New("data channel not open")
	// ErrFull is returned by SendMessage when the peer does not take what it is sent.
	ErrFull = errors.New("data channel full")
	// ErrTooLong is returned by SendMessage for more than 262144 bytes.
	ErrTooLong = errors.New("data channel message too long")
)

// channel is the SCTP side of a transport: a server that takes the one data channel the peer opens (RFC 8831).
// Its goroutines are serve's and one reader.
type channel struct {
	onMessage func([]byte)
	onOpen    func(bool)

	open    atomic.Pointer[datachannel.DataChannel]
	sending sync.Mutex // so that the bound on what waits holds for several senders

	dropped atomic.Uint64 // messages in: binary, or too long
	extra   atomic.Uint64 // channels opened beside the first
}

// serve runs over conn until that ends. It returns when all that it started has ended.
func (c *channel) serve(conn net.Conn) {
	assoc, err := sctp.ServerWithOptions(
		sctp.WithNetConn(conn), sctp.WithLoggerFactory(quiet), sctp.WithMaxMessageSize(maxMessageBytes),
		sctp.WithMaxReceiveBufferSize(sctpReceiveBytes), sctp.WithRTOMax(sctpMaxRTO),
	)
	if err != nil {
		return
	}
	var readers sync.WaitGroup
	defer readers.Wait()
	defer assoc.Close()
	for {
		stream, err := assoc.AcceptStream()
		if err != nil {
			return
		}
		if c.open.Load() != nil {
			c.extra.Add(1)
			_ = stream.Close()
			continue
		}
		readers.Go(func() { c.read(stream) })
	}
}

// read takes the channel that stream is to become, and its messages until it is closed.
func (c *channel) read(stream *sctp.Stream) {
	dc, err := datachannel.Server(stream, &datachannel.Config{LoggerFactory: quiet})
	if err != nil || !c.open.CompareAndSwap(nil, dc) {
		c.extra.Add(1)
		_ = stream.Close()
		return
	}
	c.onOpen(true)
	defer c.onOpen(false)
	defer c.open.Store(nil)
	defer dc.Close() // a reset of the peer's stream asks for that of ours (RFC 8831 §6.7)
	buffer := make([]byte, 4096)
	for {
		n, kind, err := stream.ReadSCTP(buffer)
		b := buffer[:min(n, len(buffer))]
		if errors.Is(err, io.ErrShortBuffer) {
			// The message stays where it is, and n is its length. Only this read needs the room.
			b = make([]byte, n)
			_, kind, err = stream.ReadSCTP(b)
		}
		if err != nil {
			return
		}
		switch kind {
		case sctp.PayloadTypeWebRTCString:
			c.take(b)
		case sctp.PayloadTypeWebRTCStringEmpty, sctp.PayloadTypeWebRTCDCEP:
		default:
			c.dropped.Add(1)
		}
	}
}

// take passes a copy of b on.
func (c *channel) take(b []byte) {
	if len(b) > maxMessageBytes {
		c.dropped.Add(1)
		return
	}
	c.onMessage(append([]byte(nil), b...))
}

// send queues one text message. It does not wait for the network.
func (c *channel) send(b []byte) error {
	dc := c.open.Load()
	if dc == nil {
		return ErrNoChannel
	}
	if len(b) > maxMessageBytes {
		return ErrTooLong
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	if dc.BufferedAmount()+uint64(len(b)) > maxBufferedBytes {
		return ErrFull
	}
	_, err := dc.WriteDataChannel(b, true)
	return err
}
