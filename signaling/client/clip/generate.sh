#!/bin/sh
# Makes the recordings of this folder anew; needs ffmpeg with libvpx and libopus, and python3. Their
# bytes differ between versions of the encoders, which nothing depends on.
set -e
for spec in red:0xC81E1E green:0x1EA03C blue:0x1E46D2 yellow:0xDCC81E magenta:0xC828BE cyan:0x1EBEC8; do
	name=${spec%%:*} colour=${spec##*:}
	for size in 320x180:40:60 640x360:80:90 1280x720:160:160; do
		frame=${size%%:*} rest=${size#*:}
		box=${rest%%:*} rate=${rest##*:}
		ffmpeg -v error -y \
			-f lavfi -i "color=c=$colour:s=$frame:r=15:d=4.1" -f lavfi -i "color=c=white:s=${box}x$box:r=15:d=4.1" \
			-filter_complex "[0][1]overlay=x='(W-w)/2+(W-w)/2.5*cos(2*PI*t/4)':y='(H-h)/2+(H-h)/2.5*sin(2*PI*t/4)':eval=frame,format=yuv420p" \
			-frames:v 61 -c:v libvpx -deadline good -cpu-used 0 -error-resilient default -lag-in-frames 0 -auto-alt-ref 0 \
			-g 9999 -keyint_min 9999 -qmin 10 -qmax 50 -b:v "${rate}k" -undershoot-pct 95 \
			-ts-parameters "ts_number_layers=3:ts_target_bitrate=$((rate / 2)),$((rate * 3 / 4)),$rate:ts_rate_decimator=4,2,1:ts_periodicity=4:ts_layer_id=0,2,1,2:ts_layering_mode=3" \
			"$name-${frame#*x}.ivf"
	done
done
ffmpeg -v error -y -f lavfi -i "sine=frequency=440:sample_rate=48000:d=2.2" \
	-c:a libopus -b:a 24k -vbr off -application lowdelay -frame_duration 20 tone.ogg
python3 - <<'EOF'
# Packets of the Ogg file without its two headers and the encoder's start.
data, at, packet, packets = open("tone.ogg", "rb").read(), 0, b"", []
while at < len(data):
    n = data[at + 26]
    body = at + 27 + n
    for size in data[at + 27:body]:
        packet += data[body:body + size]
        body += size
        if size < 255:
            packets.append(packet)
            packet = b""
    at = body
open("tone.opus60", "wb").write(b"".join(packets[6:106]))
EOF
rm tone.ogg
