// What the page says to a visitor of a kiosk, who chose a language. In: its tag, a key. Out: words.

const WORDS = {
	en: {
		send: "Send",
		stop: "Stop",
		retry: "Try again",
		restart: "Start over",
		placeholder: "Write a message",
		greeting: "How can I help?",
		waiting: "Waiting…",
		reading: "Reading…",
		busy: "The server is busy. Next try in {n} s.",
		loading: "The model is being loaded…",
		silent: "The server has been silent for {n} s.",
		unreachable: "The server cannot be reached.",
		broken: "The answer could not be finished.",
		full: "This conversation has become too long. Please start over.",
		stopped: "Stopped.",
		there: "Are you still there?",
		clearing: "This conversation will be cleared in {n} s.",
		stay: "I am still here",
	},
	zh: {
		send: "发送",
		stop: "停止",
		retry: "重试",
		restart: "重新开始",
		placeholder: "请输入您的问题",
		greeting: "有什么可以帮您？",
		waiting: "请稍候…",
		reading: "正在阅读…",
		busy: "当前使用人数较多，{n} 秒后重试。",
		loading: "正在加载模型…",
		silent: "服务器已 {n} 秒没有响应。",
		unreachable: "无法连接服务器。",
		broken: "回答未能完成。",
		full: "对话过长，请重新开始。",
		stopped: "已停止。",
		there: "您还在吗？",
		clearing: "对话将在 {n} 秒后清除。",
		stay: "我还在",
	},
	ar: {
		send: "إرسال",
		stop: "إيقاف",
		retry: "حاول مرة أخرى",
		restart: "ابدأ من جديد",
		placeholder: "اكتب رسالة",
		greeting: "كيف يمكنني مساعدتك؟",
		waiting: "لحظة من فضلك…",
		reading: "جارٍ القراءة…",
		busy: "الخادم مشغول. المحاولة التالية بعد {n} ث.",
		loading: "يجري تحميل النموذج…",
		silent: "لم يستجب الخادم منذ {n} ث.",
		unreachable: "تعذر الوصول إلى الخادم.",
		broken: "لم تكتمل الإجابة.",
		full: "أصبحت المحادثة طويلة. ابدأ من جديد.",
		stopped: "تم الإيقاف.",
		there: "هل ما زلت هنا؟",
		clearing: "ستُمسح المحادثة بعد {n} ث.",
		stay: "ما زلت هنا",
	},
};
const RIGHT_TO_LEFT = ["ar", "fa", "he", "ur"];
let chosen = WORDS.en;

const base = (tag) => tag?.split("-")[0].toLowerCase();

export function speak(tag) {
	chosen = WORDS[base(tag)] ?? WORDS.en;
}

export const say = (key, n = 0) => chosen[key].replace("{n}", n);

export const directionOf = (tag) => (RIGHT_TO_LEFT.includes(base(tag)) ? "rtl" : "ltr");

// A language's name in its own words, or in another language's.
export function nameOf(tag, reader = tag) {
	try {
		return new Intl.DisplayNames([reader], { type: "language" }).of(tag);
	} catch {
		return tag; // not one that the browser takes
	}
}
