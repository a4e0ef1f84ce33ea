// weir.v1.Chat -> the template's input.
#pragma once

#include "server/violations.h"
#include "text/chat_template.h"

namespace weir::v1 {
class Chat;
}

namespace weir::server {

// Everything that is wrong goes to `violations` with paths under "chat."; the result then means
// nothing. `with_tools`: whether the template is to see them. Whether the template can render the
// messages shows only when it does.
text::ChatRequest ToChatRequest(const v1::Chat& chat, bool with_tools,
                                const text::ChatTemplate& chat_template, Violations* violations);

}  // namespace weir::server
