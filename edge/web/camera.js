// A picture from the camera. In: the dialog. Out: a file, or nothing. Without a secure context there is no camera.

import { $ } from "./dom.js";
import { say } from "./words.js";

export const hasCamera = () => Boolean(navigator.mediaDevices?.getUserMedia);

const REFUSALS = { NotAllowedError: "cameraRefused", SecurityError: "cameraRefused", NotFoundError: "noCamera" };

// Null if the user took none. Throws an Error in words.
export async function photograph() {
	let stream = null;
	try {
		stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 1920 } } });
	} catch (error) {
		throw new Error(say(REFUSALS[error.name] ?? "cameraBusy"));
	}
	try {
		return await shown(stream);
	} finally {
		for (const track of stream.getTracks()) track.stop();
	}
}

async function shown(stream) {
	const [dialog, video] = [$("camera-view"), $("camera-video")];
	$("camera-title").textContent = say("camera");
	$("camera-take").textContent = say("take");
	$("camera-cancel").textContent = say("cancel");
	video.srcObject = stream;
	dialog.returnValue = "";
	dialog.showModal();
	$("camera-cancel").onclick = () => dialog.close("");
	$("camera-take").onclick = () => dialog.close("taken");
	await new Promise((resolve) => (dialog.onclose = resolve));
	const file = dialog.returnValue && video.videoWidth ? await frameOf(video) : null;
	video.srcObject = null;
	return file;
}

function frameOf(video) {
	const canvas = document.createElement("canvas");
	[canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
	canvas.getContext("2d").drawImage(video, 0, 0);
	return new Promise((resolve) => {
		canvas.toBlob((blob) => resolve(new File([blob], say("photo"), { type: "image/jpeg" })), "image/jpeg", 0.92);
	});
}
