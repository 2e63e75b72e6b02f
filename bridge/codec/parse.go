package codec

// A Reader reads the packets of one encoding. The zero value is ready to use.
type Reader struct {
	dd        DescriptorReader
	timestamp uint32
	started   bool
}

// Read fills f from one packet: its codec, payload, dependency descriptor (nil without one), RTP timestamp.
// A packet that cannot be read is Plain.
func (r *Reader) Read(c Codec, payload, descriptor []byte, timestamp uint32, f *Frame) {
	start := !r.started || timestamp != r.timestamp
	r.timestamp, r.started = timestamp, true
	r.dd.frame(c, payload, descriptor, start, f)
}

// Again fills f from a packet that was read before, as when it is sent once more. It leaves r as it is.
func (r *Reader) Again(c Codec, payload, descriptor []byte, f *Frame) {
	if len(descriptor) > 3 && descriptor[3]&0x80 != 0 { // it brings its structure
		var own DescriptorReader
		own.frame(c, payload, descriptor, false, f)
		return
	}
	r.dd.frame(c, payload, descriptor, false, f)
}

// frame reads a packet; start is for codecs that do not tell where a frame begins.
func (r *DescriptorReader) frame(c Codec, payload, descriptor []byte, start bool, f *Frame) {
	ok := false
	switch c {
	case VP8:
		ok = ParseVP8(payload, f)
	case VP9:
		ok = ParseVP9(payload, f)
	}
	if !ok {
		*f = Frame{Codec: c, Start: start}
		switch c {
		case H264:
			f.Key = keyH264(payload, start)
		case AV1:
			f.Key = start && keyAV1(payload)
		}
	}
	if len(descriptor) == 0 || c == VP9 && f.Numbering != Plain {
		return
	}
	spatial, heights := f.Spatial, f.Heights
	err := r.Read(descriptor, f)
	if err == ErrDescriptor {
		f.Spatial, f.Heights = spatial, heights
		return
	}
	f.Numbering = ByDescriptor
	d := &f.Descriptor
	f.Start, f.End = d.Start, d.End
	if err != nil {
		f.Present, f.Switch, f.Key = 1<<32-1, 0, false
		return
	}
	f.Key = f.Start && d.HasStructure && d.FDiffs == 0 && d.SID == 0
	if heights[0] != 0 { // what the frame itself says of its size
		f.Spatial, f.Heights = spatial, heights
	}
}
